"""The charts of particular notebooks, one file a topic; looks and saving are in `figures`."""
