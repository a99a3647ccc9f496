"""What people and machines read: metrics, status, texts."""
