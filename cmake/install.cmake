# What C++ services need: headers, the static library, and what find_package(pard_rt) reads. In a wheel
# all of it lies inside the Python package.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
if(PARD_BUILD_PYTHON)
  set(CMAKE_INSTALL_INCLUDEDIR pard_rt/include)
  set(CMAKE_INSTALL_LIBDIR pard_rt/lib)
endif()
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/pard_rt)

install(TARGETS pard EXPORT pard_rt-targets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT python
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/src/pard DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT python
        FILES_MATCHING PATTERN "*.h")
install(EXPORT pard_rt-targets NAMESPACE pard:: DESTINATION ${package_dir} COMPONENT python)

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/pard_rt-config.cmake.in pard_rt-config.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(pard_rt-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/pard_rt-config.cmake ${PROJECT_BINARY_DIR}/pard_rt-config-version.cmake
        DESTINATION ${package_dir} COMPONENT python)
