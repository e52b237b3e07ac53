"""Files of text: prose, markup, source code, notebooks and web pages."""
