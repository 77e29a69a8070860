import json
import subprocess
import sys
from dataclasses import replace

import pytest

from llmc.compiler.base.targets import TARGETS, Requirement, Target, get_target
from llmc.compiler.insight import doctor
from llmc.compiler.insight.doctor import examine, target_status
from llmc.runtimes.machine.fingerprint import GpuDescription

H100 = GpuDescription("NVIDIA H100", 80 << 30, compute_capability="9.0")
BLACKWELL = GpuDescription("NVIDIA RTX 5090", 32 << 30, compute_capability="12.0")


def target(*modules: str, name: str = "cpu", **fields) -> Target:
    """A row of the table with other needs."""
    return replace(get_target(name), requirement=Requirement((), modules, **fields))


READY = target("json")
RTX = target("json", name="tensorrt-rtx", capabilities=("8.9", "12."), builds_without_gpu=True)


def test_report_of_this_machine_is_json():
    report = json.loads(json.dumps(examine().to_json()))
    assert [target["target"] for target in report["targets"]] == [
        "cpu",
        "cuda",
        "tensorrt",
        "tensorrt-rtx",
        "openvino",
    ]
    assert report["packages"]["numpy"]


def test_a_target_with_everything_can_run():
    status = target_status(READY, (), ())
    assert status.can_build
    assert status.can_run
    assert status.needs == ()


def test_a_missing_package_names_the_extra():
    status = target_status(target("no_such_module", name="openvino"), (), ())
    assert status.needs == ("no_such_module is not installed: pip install 'llmc-toolchain[openvino]'",)
    assert not status.can_build


def test_a_missing_provider_is_not_a_missing_package():
    requirement = target("json", name="cuda", provider="CUDAExecutionProvider")
    (need,) = target_status(requirement, ("CPUExecutionProvider",), (H100,)).needs
    assert "no CUDAExecutionProvider" in need
    assert "[cuda]" in need
    assert "pip uninstall" in need
    assert target_status(requirement, ("CUDAExecutionProvider",), (H100,)).can_run


def test_every_companion_must_be_there():
    requirement = target("json", companions=("json", "no_such.module"))
    status = target_status(requirement, (), ())
    assert status.needs == ("no_such.module is not installed: pip install 'llmc-toolchain[cpu]'",)
    assert not status.can_build


def test_cuda_needs_its_provider_and_its_bindings(monkeypatch):
    cuda = get_target("cuda")
    installed = {"onnxruntime", "cuda.bindings"}
    monkeypatch.setattr(doctor, "is_importable", lambda module: module in installed)
    assert target_status(cuda, ("CUDAExecutionProvider",), (H100,)).can_run
    status = target_status(cuda, ("CUDAExecutionProvider",), ())
    assert (status.can_build, status.can_run) == (True, False)
    installed.remove("cuda.bindings")
    (need,) = target_status(cuda, ("CUDAExecutionProvider",), (H100,)).needs
    assert need.startswith("cuda.bindings is not installed")


def test_building_without_a_gpu():
    status = target_status(RTX, (), ())
    assert status.can_build
    assert not status.can_run
    assert "no NVIDIA GPU" in status.needs[0]
    assert not target_status(target("json", name="tensorrt"), (), ()).can_build


def test_any_one_module_will_do():
    either = target("no_such_module", "json")
    assert target_status(either, (), ()).can_run


def test_building_may_need_the_modules_alone():
    """Neither the provider nor the companions, which are for running."""
    needs = Requirement(
        (),
        ("json",),
        companions=("no_such_module", "no_such_other"),
        provider="P",
        builds_without_gpu=True,
        builds_with_modules=True,
    )
    full = replace(READY, requirement=needs)
    status = target_status(full, ("Q",), ())
    assert (status.can_build, status.can_run) == (True, False)
    assert [need.split()[0] for need in status.needs] == ["the", "no_such_module", "no_such_other"]
    assert not target_status(
        replace(full, requirement=replace(needs, builds_with_modules=False)), ("Q",), ()
    ).can_build
    absent = replace(full, requirement=replace(needs, modules=("no_such_module",)))
    assert not target_status(absent, ("P",), ()).can_build


def test_without_a_list_of_capabilities_every_gpu_will_do():
    assert target_status(target("json", name="tensorrt-rtx"), (), (H100,)).can_run


@pytest.mark.parametrize(
    ("capability", "supported"),
    [
        *((capability, True) for capability in ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")),
        *((capability, False) for capability in ("1.2", "7.0", "9.0", "10.0")),
    ],
)
def test_gpus_of_tensorrt_rtx(monkeypatch, capability, supported):
    monkeypatch.setattr(doctor, "is_importable", lambda module: True)
    status = target_status(get_target("tensorrt-rtx"), (), (replace(H100, compute_capability=capability),))
    assert (status.can_build, status.can_run) == (True, supported)


def test_what_builds_without_a_gpu(monkeypatch):
    monkeypatch.setattr(doctor, "is_importable", lambda module: True)
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    status = {each.name: target_status(each, providers, ()) for each in TARGETS}
    assert {name: (item.can_build, item.can_run) for name, item in status.items()} == {
        "cpu": (True, True),
        "cuda": (True, False),
        "tensorrt": (False, False),
        "tensorrt-rtx": (True, False),
        "openvino": (True, True),
    }


@pytest.mark.parametrize(
    ("isa", "slow"), [((), True), (("avx2", "avx512f"), True), (("avx2", "avx_vnni"), False), (("i8mm",), False)]
)
def test_a_processor_without_int8_products_is_a_note(monkeypatch, isa, slow):
    machine = replace(doctor.machine_fingerprint(), isa=isa)
    monkeypatch.setattr(doctor, "machine_fingerprint", lambda: machine)
    monkeypatch.setattr(doctor, "execution_providers", lambda: ((), "it does not load"))
    notes = examine().notes
    assert "it does not load" in notes
    assert any("no int8 dot product" in note for note in notes) == slow


def test_a_module_of_a_package_that_is_not_there_is_not_there():
    assert not doctor.is_importable("no_such_package.module")
    assert not doctor.is_importable("json.no_such_module")
    assert not doctor.is_importable("")
    assert doctor.is_importable("json.decoder")


def test_a_gpu_that_the_runtime_refuses():
    (need,) = target_status(RTX, (), (H100,)).needs
    assert "NVIDIA H100 (9.0) cannot run it" in need
    assert "8.9, 12.x" in need
    assert target_status(RTX, (), (H100, BLACKWELL)).can_run


def test_an_onnxruntime_that_does_not_load_is_a_note(monkeypatch, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libcudart.so.13: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    providers, failure = doctor.execution_providers()
    assert providers == ()
    assert "libcudart" in failure


def test_no_onnxruntime(monkeypatch):
    monkeypatch.setattr(doctor, "is_importable", lambda module: False)
    report = examine()
    assert report.execution_providers == ()
    assert all(not target.can_run for target in report.targets)


@pytest.mark.parametrize("both", [True, False])
def test_two_onnxruntimes_are_a_note(monkeypatch, both):
    installed = {"onnxruntime": "1", **({"onnxruntime-gpu": "1"} if both else {})}
    monkeypatch.setattr(doctor, "installed_versions", lambda names: installed)
    assert any("overwrite each other" in note for note in examine().notes) == both


def test_import_is_light():
    code = (
        "import sys; import llmc.compiler.insight.doctor; "
        "sys.exit(any(name in sys.modules for name in ('onnxruntime', 'torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_engines_for_cuda_are_built_with_any_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass makes them; the provider and cuda-bindings are for running."""
    cuda = get_target("cuda")
    monkeypatch.setattr(doctor, "is_importable", lambda module: module == "onnxruntime")
    status = doctor.target_status(cuda, ["CPUExecutionProvider"], [])
    assert (status.can_build, status.can_run) == (True, False)
    monkeypatch.setattr(doctor, "is_importable", lambda module: False)
    assert not doctor.target_status(cuda, [], []).can_build
