using System.Reflection;
using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels.Runtime;

public sealed class KernelSourcesTests
{
    [Fact]
    public void A_source_comes_with_all_headers_that_it_includes_and_no_other()
    {
        var sources = new KernelSources(new Dictionary<string, string>
        {
            ["Op/a.cu"] = """
                #include "fla/b.cuh"
                  #  include  "fla/c.cuh"
                // #include "fla/comment.cuh"
                """,
            ["fla/b.cuh"] = "#pragma once\n#include \"fla/d.cuh\"\n",
            ["fla/c.cuh"] = "#pragma once\n#include \"fla/b.cuh\"\n",
            ["fla/d.cuh"] = "#pragma once\n#include \"fla/c.cuh\"\n", // a circle, which #pragma once ends
            ["fla/unused.cuh"] = "",
        }.GetValueOrDefault);

        var source = sources.Resolve("Op/a.cu");
        Assert.Equal(["fla/b.cuh", "fla/c.cuh", "fla/d.cuh"], source.Headers.Select(header => header.Key));
        Assert.Equal("#pragma once\n#include \"fla/b.cuh\"\n", source.Headers[1].Value);
    }

    [Fact]
    public void A_missing_header_is_named_with_who_wants_it()
    {
        var sources = new KernelSources(name => name == "Op/a.cu" ? "#include \"fla/lost.cuh\"" : null);
        var thrown = Assert.Throws<FileNotFoundException>(() => sources.Resolve("Op/a.cu"));
        Assert.Equal("There is no kernel source fla/lost.cuh, included by Op/a.cu.", thrown.Message);
        thrown = Assert.Throws<FileNotFoundException>(() => sources.Resolve("Op/b.cu"));
        Assert.Equal("There is no kernel source Op/b.cu.", thrown.Message);
    }

    [Fact]
    public void A_standard_header_is_refused()
    {
        var sources = new KernelSources(_ => "#include <cuda_bf16.h>\n");
        var thrown = Assert.Throws<InvalidDataException>(() => sources.Resolve("Op/a.cu"));
        Assert.StartsWith("Op/a.cu includes <cuda_bf16.h>", thrown.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Resources_have_the_names_that_includes_have()
    {
        var source = TestKernels.Sources.Resolve("Test/axpy.cu");
        Assert.Equal(["Test/axpy.cuh", "Test/multiply_add.cuh"], source.Headers.Select(header => header.Key));
        Assert.DoesNotContain('\r', source.Text);
    }

    [Fact]
    public void Every_embedded_source_resolves()
    {
        var names = typeof(KernelSources).Assembly.GetManifestResourceNames();
        Assert.All(names, name => Assert.Matches(@"^(fla/[a-z0-9_]+\.cuh|([A-Z]\w*/)+[a-z0-9_]+\.cu)$", name));
        Assert.All(names, name => KernelSources.Embedded.Resolve(name));
    }
}
