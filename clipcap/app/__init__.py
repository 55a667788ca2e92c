"""The web page: photos in a browser, captions out; nothing leaves the machine."""
