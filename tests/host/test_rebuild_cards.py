"""A build for cards, on a host that has none: everything up to the GPU itself is real.

The driver and NVML are faked as everywhere in this tier, and so is nvcc, which is only asked what it is: the stand-in
that is built has no CUDA in it, so that the new binary sees no GPU, just like one that was built without it by mistake.
"""

from __future__ import annotations

from bed import fake_devices, fake_driver, fake_nvml
from rebuilding import RELEASES, Boot, Box, make_sure_that_nothing_is_in_between, standin

NVCC = "/usr/local/cuda/bin/nvcc"
"""Where NVIDIA's packages put it; says what 12.8 says, and has cuBLAS unless a file says otherwise."""
SCRIPT = """\
#!/bin/sh
case $1 in
--version) echo 'Cuda compilation tools, release 12.8, V12.8.93' ;;
--list-gpu-arch) printf 'compute_75\\ncompute_89\\ncompute_90\\ncompute_120\\n' ;;
-E) [ ! -e /run/no-cublas ] || { echo '<command-line>: fatal error: cublas_v2.h: No such file' >&2; exit 1; } ;;
esac
"""


def show_card(box: Box, driver: str, capability: str = "9.0") -> None:
    """A card of that compute capability under that driver."""
    fake_driver(box.host, driver)
    fake_devices(box.host)
    fake_nvml(box.host, library=driver, compute_capability=capability)


def test_a_build_for_cards_needs_a_toolkit_that_suits_them_and_is_never_switched_to_without_a_gpu(host: Boot) -> None:
    box = standin(host)
    box.wants("b2", 'cmake = ["-DGGML_CUDA=ON"]\n')

    def refused(*words: str) -> None:
        status, said, _ = box.holdfast("run", "rebuild-llama-cpp", "--engine", "chat", "--force")
        assert status != 0, said
        for each in words:
            assert each in " ".join(said.split()), said
        assert make_sure_that_nothing_is_in_between(box) == "b1"

    refused("there is no nvcc", "no NVIDIA driver is loaded, and [engine.rebuild] architectures is empty")
    box.host.write(NVCC, SCRIPT, 0o755)
    show_card(box, "535.183.01")
    refused("CUDA 12.8 needs a driver from 550 on, loaded is 535.183.01")
    show_card(box, "570.86.15", "10.0")
    refused("nvcc 12.8 cannot build for 100")
    show_card(box, "570.86.15")
    box.host.write("/run/no-cublas", "")
    refused("has no cuBLAS", "libcublas-dev-12-8")
    box.host.sh("rm /run/no-cublas")

    status, said, _ = box.holdfast("run", "rebuild-llama-cpp", "--engine", "chat", "--dry-run")
    assert status == 0, said
    name = f"b2-{box.commits['b2'][:12]}+cuda12.8+sm90"
    for words in (name, f"-DCMAKE_CUDA_COMPILER={NVCC}", "-DCMAKE_CUDA_ARCHITECTURES=90", "-DGGML_CUDA=ON"):
        assert words in said, said
    before = box.releases()
    refused("GPU")
    assert box.releases() == before == [f"b1-{box.commits['b1'][:12]}+cpu"]
    assert box.host.exists(RELEASES)
    steps = box.steps()
    assert "Build" in steps, steps
    assert "Put it in its place" not in steps, steps
