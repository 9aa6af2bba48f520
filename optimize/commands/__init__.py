"""The commands beside a run: the build step, the cache, the device, and a second verdict."""
