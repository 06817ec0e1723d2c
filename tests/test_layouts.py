"""Other layouts of a bundle: read by Triton's own schema, by ONNX Runtime's own API, and as YAML."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from click.testing import CliRunner, Result

from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.layouts import write_layout
from edgecnn.layouts.triton import config, kserve, model_name
from edgecnn.spec import to_json


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def repository(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "out"
    write_layout(bundle, "triton", out)
    return out


@pytest.fixture(scope="module")
def package(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("package") / "out"
    write_layout(bundle, "ort-model-package", out)
    return out


def parsed(text: str) -> Any:
    """Parse a config.pbtxt with the schema that Triton's client carries."""
    if importlib.util.find_spec("tritonclient") is None or importlib.util.find_spec("grpc") is None:
        assert "CI" not in os.environ, "tritonclient[grpc] is missing"
        pytest.skip("tritonclient[grpc] is not installed: pip install 'tritonclient[grpc,http]'")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_a_triton_repository_holds_each_artifact_as_a_model(bundle: Bundle, repository: Path) -> None:
    """The default artifact bears the bundle's name, the other ONNX ones that and theirs; the bytes are the bundle's."""
    name = bundle.manifest.name
    default = bundle.manifest.default_artifact
    onnx = [artifact for artifact, record in bundle.manifest.artifacts.items() if record.format == "onnx"]
    folders = {artifact: name if artifact == default else f"{name}-{artifact}" for artifact in onnx}
    assert {path.name for path in (repository / "model_repository").iterdir()} == set(folders.values())
    for artifact, folder in folders.items():
        model = (repository / "model_repository" / folder / "1" / "model.onnx").read_bytes()
        assert model == bundle.artifact(artifact).path.read_bytes()
        labels = (repository / "model_repository" / folder / "labels.txt").read_text().splitlines()
        assert labels == list(bundle.manifest.labels)
    assert (repository / "manifest.json").read_bytes() == (bundle.root / "manifest.json").read_bytes()


def test_tritons_schema_reads_the_configuration(bundle: Bundle, repository: Path) -> None:
    """Names, types and dimensions are those of the ONNX file itself, batch left out, on the CPU."""
    for folder in (repository / "model_repository").iterdir():
        found = parsed((folder / "config.pbtxt").read_text())
        session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"))
        assert (found.name, found.backend, found.max_batch_size) == (folder.name, "onnxruntime", 32)
        types = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}
        for values, tensors in ((session.get_inputs(), found.input), (session.get_outputs(), found.output)):
            names = [type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name for tensor in tensors]  # fmt: skip
            assert [(value.name, types[value.type], value.shape[1:]) for value in values] == [
                (tensor.name, kind, list(tensor.dims)) for tensor, kind in zip(tensors, names, strict=True)
            ]
        assert {tensor.label_filename for tensor in found.output} == {"labels.txt"}
        assert found.instance_group[0].kind == 2  # KIND_CPU
        assert found.dynamic_batching.max_queue_delay_microseconds == 500


@pytest.mark.parametrize(("target", "kind"), [("cuda", 1), ("tensorrt", 1), ("arm64", 2)])
def test_accelerators_are_asked_for(target: str, kind: int, bundle: Bundle) -> None:
    """Artifacts for CUDA and TensorRT run on the GPU, the latter by its accelerator in the artifact's precision."""
    changed = to_json(bundle.manifest).replace(b'"target": "any"', f'"target": "{target}"'.encode())
    from edgecnn.manifest import parse_manifest

    found = parsed(config(Bundle(bundle.root, parse_manifest(changed, "here")), "int8", "name"))
    assert found.instance_group[0].kind == kind
    accelerators = found.optimization.execution_accelerators.gpu_execution_accelerator
    assert [(one.name, dict(one.parameters)) for one in accelerators] == (
        [("tensorrt", {"precision_mode": "INT8"})] if target == "tensorrt" else []
    )


def test_a_batch_of_one_size_is_written_out(bundle: Bundle) -> None:
    """Where the batch is fixed, Triton is told of no batch, and every dimension is listed."""
    data = json.loads(to_json(bundle.manifest))
    for spec in (*data["inputs"], *data["outputs"]):
        spec["shape"][0] = 1
    from edgecnn.manifest import parse_manifest

    found = parsed(config(Bundle(bundle.root, parse_manifest(json.dumps(data).encode(), "here")), "int8", "name"))
    assert found.max_batch_size == 0
    assert list(found.input[0].dims) == [1, 8, 8, 1]
    assert not found.HasField("dynamic_batching")


@pytest.mark.parametrize(
    ("name", "safe"),
    [("digits", "digits"), ("a b/../c", "a-b-..-c"), ('x"y', "x-y"), ("Ünïcode", "n-code"), ("..", "model")],
)
def test_names_are_safe_in_paths_and_urls(name: str, safe: str) -> None:
    """Whatever a bundle is called, the model's name is letters, digits, dots, dashes and underscores."""
    assert model_name(name) == safe


@pytest.mark.parametrize("name", ["digits", "My_Net.v2", "28x28", "x" * 100])
def test_kserves_manifest_is_yaml_with_a_valid_name(name: str) -> None:
    """The service runs Triton by protocol v2 on the repository, under a name that a DNS label allows (RFC 1035)."""
    found = yaml.safe_load(kserve(name))
    assert (found["apiVersion"], found["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", found["metadata"]["name"])
    model = found["spec"]["predictor"]["model"]
    assert (model["runtime"], model["protocolVersion"], model["modelFormat"]) == ("kserve-tritonserver", "v2", {"name": "onnx"})  # fmt: skip
    assert model["storageUri"].endswith("/model_repository")


def test_onnx_runtime_opens_the_package_and_answers_as_the_bundle(bundle: Bundle, package: Path) -> None:
    """ONNX Runtime's own API lists the variants, takes the default artifact, and gives its recorded answers bit for bit."""
    context = onnxruntime.ModelPackageContext(str(package))
    assert context.get_component_names() == ["classifier"]
    default = bundle.manifest.default_artifact
    assert sorted(context.get_variant_names("classifier")) == ["fp32", "int8"]
    chosen = context.select_component("classifier", onnxruntime.ModelPackageOptions(onnxruntime.SessionOptions()))
    assert chosen.get_selected_variant_name() == default
    session = chosen.create_session()
    pixels = bundle.goldens().pixels
    plain = onnxruntime.InferenceSession(bundle.artifact(default).path.read_bytes())
    feeds = {session.get_inputs()[0].name: pixels}
    for got, wanted in zip(session.run(None, feeds), plain.run(None, feeds), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_the_package_says_what_is_in_it(bundle: Bundle, package: Path) -> None:
    """Labels, preprocessing and each variant's hash travel in the package, which ONNX Runtime accepts strictly."""
    opened = onnxruntime.ModelPackage.open(str(package), strict_unknown_fields=True)
    info = opened.get_info()
    opened.close()
    assert info["components"][0]["name"] == "classifier"
    shape = json.loads((package / "manifest.json").read_text())
    assert shape["additional_metadata"]["labels"] == list(bundle.manifest.labels)
    assert shape["additional_metadata"]["preprocess"]["scale"] == bundle.manifest.preprocess.scale
    for name, variant in shape["components"]["classifier"]["variants"].items():
        assert variant["additional_metadata"]["sha256"] == bundle.artifact(name).sha256
        assert (package / name / "model.onnx").read_bytes() == bundle.artifact(name).path.read_bytes()


def test_a_damaged_bundle_becomes_no_layout(bundle_copy: Path, tmp_path: Path) -> None:
    """A changed byte is one line and exit 2, and no folder is left."""
    data = bytearray((bundle_copy / "int8.onnx").read_bytes())
    data[100] ^= 1
    (bundle_copy / "int8.onnx").write_bytes(data)
    result = invoke("export", bundle_copy, "-o", tmp_path / "out", "--layout", "triton")
    assert result.exit_code == 2
    assert "int8.onnx: the content does not have the recorded SHA-256" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_bundle_in_the_way_stays(bundle_copy: Path) -> None:
    """A layout replaces a layout of its kind, and nothing else."""
    before = sorted(path.name for path in bundle_copy.iterdir())
    for layout in ("triton", "ort-model-package"):
        result = invoke("export", bundle_copy, "-o", bundle_copy, "--layout", layout)
        assert (result.exit_code, "will not be replaced" in result.stderr) == (2, True)
    assert sorted(path.name for path in bundle_copy.iterdir()) == before


def test_a_layout_is_replaced_by_a_new_one(bundle_folder: Path, tmp_path: Path) -> None:
    """The same command twice gives the same folder; --json tells what was written."""
    out = tmp_path / "out"
    arguments = ("export", bundle_folder, "-o", out, "--layout", "ort-model-package", "--json")
    assert invoke(*arguments).exit_code == 0
    result = invoke(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["layout"] == "ort-model-package"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_bundle_is_not_exported_to_a_bundle(bundle_folder: Path, tmp_path: Path) -> None:
    """Exporting what is a bundle already is one line that names --layout."""
    result = invoke("export", bundle_folder, "-o", tmp_path / "out")
    assert (result.exit_code, "--layout" in result.stderr) == (2, True)
