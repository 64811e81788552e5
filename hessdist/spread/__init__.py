"""Models whose parameters are spread over ranks, with exact first and second derivatives."""
