"""One folder a pipeline; the classes are exported by `diffusers_ref`."""
