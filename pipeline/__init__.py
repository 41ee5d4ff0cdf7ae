"""The order of things: recipe, data, export, surgery, validation, report, command line."""
