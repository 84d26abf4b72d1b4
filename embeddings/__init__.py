"""TorchRec embedding tables from the feature schema: build, initialise, plan."""
