"""Which numbers of a sequence have arrived, kept short however many they are."""

Ranges = list[list[int]]


def add(ranges: Ranges, number: int) -> bool:
    """Adds a number to sorted, disjoint ranges [first, last], in place. False when it was there already.

    Numbers mostly come in order, so the search starts at the end.
    """
    for index in range(len(ranges) - 1, -1, -1):
        first, last = ranges[index]
        if first <= number <= last:
            return False
        if number == last + 1:
            ranges[index][1] = number
            _join(ranges, index)
            return True
        if number > last:
            ranges.insert(index + 1, [number, number])
            _join(ranges, index + 1)
            return True
    ranges.insert(0, [number, number])
    _join(ranges, 0)
    return True


def _join(ranges: Ranges, index: int) -> None:
    """Merges a range with the one after it when they touch."""
    if index + 1 < len(ranges) and ranges[index][1] + 1 == ranges[index + 1][0]:
        ranges[index][1] = ranges.pop(index + 1)[1]
