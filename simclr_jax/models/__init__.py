"""Networks in Flax linen: the encoder (resnet), the projection head (heads), and both together (simclr)."""
