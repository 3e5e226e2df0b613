"""The dead-letter queue: changes that wait in Redis until a destination takes them."""
