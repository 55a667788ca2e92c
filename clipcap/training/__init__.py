"""From feature file to captioner: dataset, batches, task, loop, run folder."""
