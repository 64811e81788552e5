"""The loss along directions away from the present parameters, and along paths between solutions."""
