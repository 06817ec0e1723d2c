"""The page's routes: what is served, under which policy, and what is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from page_server import Served, serving, with_package

from edgecnn.bundle import Bundle
from edgecnn.manifest import parse_manifest
from edgecnn.serving import page as served_page
from edgecnn.serving.app import make_app
from edgecnn.spec import BackendRef

SCRIPTS = ("page.mjs", "browser.mjs", "decode.mjs", "pixels.mjs")


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Served]:
    with serving(make_app(bundle)) as served:
        yield served


def test_the_page_and_its_parts_are_served_under_one_policy(server: Served) -> None:
    """The page, its scripts, style and icon come with their types and a policy that lets nothing else run or load."""
    kinds = {"/": "text/html", "/page/style.css": "text/css", "/page/icon.svg": "image/svg+xml"}
    kinds |= {f"/page/{name}": "text/javascript" for name in SCRIPTS}
    for path, kind in kinds.items():
        status, content, headers = server.get(path)
        assert (status, headers["Content-Type"].partition(";")[0]) == (200, kind)
        assert content
        policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
        assert policy.pop("script-src") == "'self' 'wasm-unsafe-eval'"
        assert policy["default-src"] == "'none'"
        assert set(policy.values()) == {"'self'", "'none'"}
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_nothing_on_the_page_comes_from_elsewhere() -> None:
    """No file of the page names another host, and the page holds no script, style or handler of its own."""
    for file in served_page.FOLDER.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "//cdn" not in text
    document = (served_page.FOLDER / "index.html").read_text()
    assert document.count("<script") == document.count('src="page/page.mjs"></script>') == 1
    assert "<style" not in document
    assert not re.search(r"\s(style|on\w+)=", document)


@pytest.mark.parametrize(
    "path",
    ["/page/", "/page/../page.py", "/page/%2e%2e%2fpage.py", "/page/..%2f..%2fapp.py", "/page//etc/passwd", "/page/page.py",
     "/ort/../package.json", "/ort/%2e%2e%2fpackage.json", "/ort/ort.wasm.min.mjs.map", "/bundle/labels.txt",
     "/bundle/goldens/000.png", "/bundle/model.safetensors", "/bundle/..%2fbundle%2flabels.txt", "/bundle/"],
)  # fmt: skip
def test_no_other_file_is_served(server: Served, path: str) -> None:
    """Addresses that lead out of the folders, or to files that the page does not need, are not found."""
    with with_package("node"):
        assert server.get(path)[0] == 404


def test_the_model_is_served_as_the_bundle_has_it(server: Served, bundle: Bundle) -> None:
    """The manifest and both ONNX files arrive as they are, and an unchanged file is not sent twice."""
    assert parse_manifest(server.get("/bundle/manifest.json")[1], "served") == bundle.manifest
    names = served_page.browser_artifacts(bundle)
    assert names[0] == bundle.manifest.default_artifact
    assert set(names) == {"fp32", bundle.manifest.default_artifact}  # int8, where the export found it faster
    for name in names:
        path = bundle.manifest.artifacts[name].path
        status, content, headers = server.get(f"/bundle/{path}")
        assert (status, content) == (200, (bundle.root / path).read_bytes())
        assert server.get(f"/bundle/{path}", If_None_Match=headers["ETag"])[:2] == (304, b"")
        assert server.get(f"/bundle/{path}", If_None_Match='"other"')[0] == 200
        head = server.get(f"/bundle/{path}", method="HEAD")
        assert (head[0], head[1], head[2]["Content-Length"]) == (200, b"", str(len(content)))


def test_a_damaged_model_is_not_served(bundle_copy: Path) -> None:
    """A byte that changed after the server began is an error of one line that names the file, and no model."""
    bundle = Bundle.open(bundle_copy)
    with serving(make_app(bundle, BackendRef(backend="onnxruntime", artifact="int8"))) as served:
        path = bundle.manifest.artifacts["fp32"].path
        data = bytearray((bundle_copy / path).read_bytes())
        data[100] ^= 1
        (bundle_copy / path).write_bytes(data)
        status, content, _ = served.get(f"/bundle/{path}")
    assert status == 500
    assert path in json.loads(content)["error"]
    assert "\n" not in json.loads(content)["error"]


def test_what_the_page_is_told(server: Served, bundle: Bundle) -> None:
    """The page learns which artifacts it may load, what the server runs, and that digits are light on dark."""
    with with_package("node"):
        told = json.loads(server.get("/bundle/browser.json")[1])
    assert [artifact["name"] for artifact in told["artifacts"]] == list(served_page.browser_artifacts(bundle))
    assert told["server"] == {"artifact": bundle.manifest.default_artifact, "runtime": "onnxruntime"}
    assert told["dark"] is True
    assert told["problem"] is None


def test_the_ground_is_that_of_the_goldens(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goldens whose colours are turned round have a light ground."""
    goldens = bundle.goldens()
    assert served_page.is_paper_dark(bundle)
    monkeypatch.setattr(Bundle, "goldens", lambda self: replace(goldens, pixels=255 - goldens.pixels))
    assert not served_page.is_paper_dark(bundle)


def test_with_a_token_the_model_is_not_public(bundle: Bundle) -> None:
    """The page and the runtime load without the token; everything of the bundle and every answer asks for it."""
    with serving(make_app(bundle, token="secret")) as served, with_package("node"):
        for path in ("/", "/page/page.mjs", "/ort/ort.wasm.min.mjs"):
            assert served.get(path)[0] == 200
        closed = ["/bundle/manifest.json", "/bundle/browser.json", *(f"/bundle/{bundle.manifest.artifacts[name].path}" for name in served_page.browser_artifacts(bundle))]  # fmt: skip
        for path in closed:
            assert served.get(path)[0] == 401
            assert served.get(path, Authorization="Bearer secret")[0] == 200
        assert served.get("/predict", method="POST")[0] == 401
