"""What a training run would need and how fast it could be on devices that are not here, from its compiled step."""
