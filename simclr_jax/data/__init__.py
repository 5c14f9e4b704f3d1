"""From images somewhere to batches of views: sources (what there is) and the pipeline (how it is read)."""
