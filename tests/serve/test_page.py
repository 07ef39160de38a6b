"""The page: all of it comes from the service, and in a browser it shows what a person asked for."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from .browser import browsing, found_browser
from .running import Running, photo, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service"), max_passes=50, max_bytes=100_000) as found:
        yield found


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_but_itself(service: Running) -> None:
    answer = service.ask(path="/")
    text = answer.body.decode()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (part,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "{{" not in text
    assert not re.findall(r"""(?:https?:)?//[a-z]""", text.replace("data:image", ""))
    assert " style=" not in text
    assert not re.findall(r"\son\w+=", text)
    assert [option in text for option in ("<option>fampe<", "<option>centre_prior<", "a small/model")] == [True] * 3


def test_a_person_explains_an_image(service: Running, tmp_path: Path) -> None:
    executable = found_browser()
    if executable is None:
        pytest.skip("no Chromium is installed")
    image = tmp_path / "photo.png"
    image.write_bytes(photo(3, (320, 240)))
    with browsing(executable, tmp_path) as page:
        page.open(f"http://127.0.0.1:{service.port}/")
        page.run("document.getElementById('go').click()")  # without an image nothing is asked
        page.choose_file("#image", image)
        page.run("document.getElementById('passes').value = '10'; document.getElementById('target').value = '2'")
        page.run("document.getElementById('go').click()")
        page.wait_until("!document.getElementById('result').hidden && document.getElementById('overlay').complete")
        facts = page.run("[...document.querySelectorAll('#facts tr')].map(row => row.innerText.split('\\t'))")
        found = {name.strip(): value.strip() for name, value in facts}
        assert found["Class"] == "cat (2)"
        assert (found["Method"], found["Passes"]) == ("fampe", "10")
        assert re.fullmatch(r"\d+\.\d %", found["Probability"])
        sizes = "['picture', 'overlay', 'legend'].map(id => document.getElementById(id).naturalWidth)"
        assert page.run(sizes) == [320, 24, 256]
        assert page.run("document.getElementById('low').textContent") == "none"
        page.picture(tmp_path / "page.png")
        # What is refused is said.
        page.run("document.getElementById('target').value = '5'; document.getElementById('go').click()")
        page.wait_until("document.getElementById('message').textContent.includes('out of range')")
        large = tmp_path / "large.png"
        large.write_bytes(b"x" * 200_000)
        page.run("document.getElementById('target').value = ''")
        page.choose_file("#image", large)
        page.run("document.getElementById('go').click()")
        page.wait_until("document.getElementById('message').textContent.includes('larger than')")
        assert {url.split("/")[2] for url in page.requested if url.startswith("http")} == {f"127.0.0.1:{service.port}"}
        assert not [text for text in page.messages if "Content Security Policy" in text], page.messages
