"""What a checkpoint answers, and how often it refuses: engines, suites, judges and scores."""
