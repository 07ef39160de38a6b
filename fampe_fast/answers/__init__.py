"""Make the results of images on a device, convert them to stored or sent form, describe and compare them."""
