"""What a proxied unit of work costs, side by side with other proxies. See ``__main__``."""
