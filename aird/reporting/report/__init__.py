"""The report: one HTML file that opens on the finding and needs nothing beside it."""
