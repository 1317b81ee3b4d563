"""Published studies: kept in results/, judged again, and shown in docs/results.md."""
