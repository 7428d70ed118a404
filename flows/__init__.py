"""The coordinator: Prefect flows over a pure round engine, the relay, the store, MLflow."""
