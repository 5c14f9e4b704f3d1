"""What accelerators can do at most."""

# Operations a second on dense bfloat16 matrices, of what JAX calls one device. Sources: cloud.google.com/tpu/docs for
# each generation; NVIDIA's data sheets of V100 (float16), A100, H100 SXM, H200.
PEAK_FLOPS = {
    'TPU v2': 22.5e12,
    'TPU v3': 61.5e12,
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5': 459e12,
    'TPU v6 lite': 918e12,
    'V100': 125e12,
    'A100': 312e12,
    'H100': 989e12,
    'H200': 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """The peak of a device by `jax.Device.device_kind`, which of GPUs also names make and memory; None: not known."""
    if device_kind in PEAK_FLOPS:
        return PEAK_FLOPS[device_kind]
    found = [peak for name, peak in PEAK_FLOPS.items() if name in device_kind.replace('-', ' ').split()]
    return found[0] if found else None
