"""The networks in Flax linen: the encoder (resnet), the projection head (heads), both together (simclr)."""
