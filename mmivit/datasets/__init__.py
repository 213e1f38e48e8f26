"""The drawn data set, data sets of photographs, and checks of data sets before a run reads them."""
