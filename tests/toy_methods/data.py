"""Two methods of a third party, as data: the first file of an extension."""

from evomerge.methods import METHODS, MethodInfo, Parameter, Statistics

LARGEST = MethodInfo(
    name="toy_largest",
    title="Base plus, element by element, the task vector of largest magnitude",
    paper="none: a toy",
    merge="toy_methods.arithmetic:merge_largest",
    shared=(
        Parameter(
            name="lambda",
            per_source=False,
            low=0.3,
            high=1.5,
            default=1.0,
            description="factor of the merged task vector",
        ),
    ),
    needs=frozenset({"base"}),
    elementwise=True,
)

PRECISION = MethodInfo(
    name="toy_precision",
    title="Average of the sources, each element weighted by its precision",
    paper="none: a toy",
    merge="toy_methods.arithmetic:merge_by_precision",
    needs=frozenset({"statistics"}),
    elementwise=True,
    statistics=Statistics("precision", "for each source {tensor name: precision of every element}"),
)

METHODS.update({LARGEST.name: LARGEST, PRECISION.name: PRECISION})
