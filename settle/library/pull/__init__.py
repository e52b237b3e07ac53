"""Getting a model into the store: from the hub, a wheel, a path, or another program's store on this machine."""
