"""What is optimized: models, the files they come from, and the data that they are judged on."""
