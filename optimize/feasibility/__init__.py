"""The least latency that a model can have on this device."""
