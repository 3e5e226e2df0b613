"""What the monitors measure and decide. Nothing here imports Dagster; the sensors do nothing but call it."""
