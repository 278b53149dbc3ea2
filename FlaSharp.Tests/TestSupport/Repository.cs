using Xunit;

namespace FlaSharp.Tests.TestSupport;

/// <summary>The source tree that this executable was built in, where it still stands there.</summary>
internal static class Repository
{
    /// <summary>The root folder; null where the tests run away from their sources.</summary>
    public static string? Root { get; } = Find();

    /// <summary>The root folder; skips the test where there is none.</summary>
    public static string Require()
    {
        Assert.SkipWhen(Root is null, "This executable runs away from its source tree.");
        return Root!;
    }

    private static string? Find()
    {
        var folder = new DirectoryInfo(AppContext.BaseDirectory);
        while (folder is not null && !File.Exists(Path.Combine(folder.FullName, "FlaSharp.sln")))
            folder = folder.Parent;
        return folder?.FullName;
    }
}
