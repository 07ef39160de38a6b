"""What is found of an image: made on a device, brought into the form that is stored or sent, described and compared."""
