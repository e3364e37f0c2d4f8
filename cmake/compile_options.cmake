# What every target of this project is compiled with; nothing here reaches those who link libpard.
add_library(pard_options INTERFACE)
target_compile_options(pard_options INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wshadow)
option(PARD_WARNINGS_ARE_ERRORS "Fail on compiler warnings" OFF)
if(PARD_WARNINGS_ARE_ERRORS)
  target_compile_options(pard_options INTERFACE -Werror)
endif()
if(PARD_SANITIZE)
  target_compile_options(pard_options INTERFACE -fsanitize=${PARD_SANITIZE} -fno-sanitize-recover=all
                                                -fno-omit-frame-pointer)
  target_link_options(pard_options INTERFACE -fsanitize=${PARD_SANITIZE})
endif()
