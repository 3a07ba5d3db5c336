"""What a process that runs others' models may inherit: where programs and GPUs are, never a secret."""

from collections.abc import Mapping

PASSED_ON = frozenset(
    ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH")
)
PASSED_ON_PREFIXES = (
    "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "GOMP_", "MKL_", "TORCH_", "PYTORCH_", "TRITON_",
)  # fmt: skip


def harmless(variables: Mapping[str, str], also: tuple[str, ...] = ()) -> dict[str, str]:
    """Those of an environment that anybody may know, and those whose names begin as `also` says."""
    return {
        name: value
        for name, value in variables.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES + also)
    }
