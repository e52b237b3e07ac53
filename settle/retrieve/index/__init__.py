"""From folders of documents to a collection that can be searched."""
