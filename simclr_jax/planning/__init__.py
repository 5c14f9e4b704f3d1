"""Memory and time of a training run on devices that need not be present, estimated from its compiled step."""
