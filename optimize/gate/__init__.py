"""The build step: declared models, judged together, and held against what was released."""
