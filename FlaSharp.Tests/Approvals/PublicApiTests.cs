using System.Reflection;
using FlaSharp.Tests.TestSupport;
using PublicApiGenerator;
using Xunit;

namespace FlaSharp.Tests.Approvals;

/// <summary>The public surface of each library, compared with a text file: a change of it is seen in review.</summary>
public sealed class PublicApiTests
{
    [Theory]
    [InlineData("FlaSharp")]
    [InlineData("FlaSharp.Kernels")]
    public void The_public_surface_is_the_approved_one(string assembly)
    {
        var actual = Assembly.Load(assembly).GeneratePublicApi(new ApiGeneratorOptions
        {
            IncludeAssemblyAttributes = false,
            DenyNamespacePrefixes = [], // System and Microsoft attributes in signatures belong to the surface
        }).ReplaceLineEndings("\n") + "\n";

        var folder = Path.Combine(Repository.Root is { } root ? Path.Combine(root, "FlaSharp.Tests") : AppContext.BaseDirectory, "Approvals");
        var approved = Path.Combine(folder, $"PublicApi.{assembly}.approved.txt");
        var received = Path.Combine(folder, $"PublicApi.{assembly}.received.txt");
        if (File.Exists(approved) && File.ReadAllText(approved).ReplaceLineEndings("\n") == actual)
        {
            File.Delete(received);
            return;
        }
        File.WriteAllText(received, actual);
        Assert.Fail(
            $"The public surface of {assembly} is not the approved one. Compare\n  {received}\nwith\n  {approved}\n" +
            "and, if the change is meant, accept it by moving the first over the second.");
    }
}
