"""The embedded log: a Kafka-like log in one SQLite file, and the Faust transport over it."""
