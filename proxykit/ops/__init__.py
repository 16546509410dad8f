"""Running it: the service and the admin listener."""
