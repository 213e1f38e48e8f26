"""The drawn data set, and checks of data sets before a run reads them."""
