"""The Python in the documentation runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pard_rt.models.find import locate

ROOT = Path(__file__).parents[2]
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize("page", ["README.md", "docs/models.md", "docs/python.md"])
def test_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "target").mkdir()
    for file in locate("demo").iterdir():
        (tmp_path / "target" / file.name).symlink_to(file)
    (tmp_path / "target" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (tmp_path / "draft").symlink_to(locate("demo/parallel"))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{page}, example {number}", "exec"), names)
