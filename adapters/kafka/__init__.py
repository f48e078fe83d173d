"""Kafka: the connection, the topics, the bulk producer, the reader; and a broker of our own for development."""
