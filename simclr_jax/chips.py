"""Peak performance of accelerators."""

# Operations per second on dense bfloat16 matrices, for one JAX device. Sources: cloud.google.com/tpu/docs for each
# generation of TPU, and NVIDIA's data sheets of V100 (float16), A100, H100 SXM and H200.
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
    """Looks up the peak of a device.

    Args:
        device_kind: `jax.Device.device_kind`. The kind of a GPU also names its maker and memory.

    Returns:
        Operations per second on dense bfloat16 matrices, or None for an unknown device.

    Example:
        >>> peak_flops('NVIDIA A100-SXM4-80GB'), peak_flops('cpu')
        (312000000000000.0, None)
    """
    if device_kind in PEAK_FLOPS:
        return PEAK_FLOPS[device_kind]
    found = [peak for name, peak in PEAK_FLOPS.items() if name in device_kind.replace('-', ' ').split()]
    return found[0] if found else None
