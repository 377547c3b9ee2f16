"""What every stage may stand on and knows nothing of them: files, processes, processors, environments, statistics."""
