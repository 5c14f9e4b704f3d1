"""From stored images to batches of views: sources open a split, the pipeline and the feeds read it."""
