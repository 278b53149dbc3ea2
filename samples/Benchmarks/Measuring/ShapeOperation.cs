namespace Benchmarks.Measuring;

/// <summary>An operation that is measured by shape, beside other libraries.</summary>
/// <param name="Name">Of the command.</param>
/// <param name="Title">Of the table.</param>
/// <param name="What">As in "Times ...".</param>
/// <param name="Letters">Of the sizes: "B,T,H,D".</param>
/// <param name="Shapes">Those that are measured by default.</param>
/// <param name="Of">The shape of as many sizes as there are letters.</param>
/// <param name="FloorNote">What has to be moved.</param>
/// <param name="InputsNote">What is peculiar to the inputs or the peers.</param>
internal sealed record ShapeOperation(string Name, string Title, string What, string Letters,
    IReadOnlyList<IOperationShape> Shapes, Func<long[], IOperationShape> Of, string FloorNote, string InputsNote)
{
    public static IReadOnlyList<ShapeOperation> All { get; } =
        [AttentionShape.Operation, ScanShape.Operation, SsdShape.Operation];

    /// <exception cref="LanguageModel.UserError">One is no shape.</exception>
    public IReadOnlyList<IOperationShape> Parse(IEnumerable<string> shapes) =>
        [.. shapes.SelectMany(text => text == "all" ? Shapes : [Of(GlaShape.ParseSizes("--shapes", text, Letters))])];
}
