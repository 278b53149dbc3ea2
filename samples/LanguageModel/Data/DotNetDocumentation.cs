using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;
using System.Text.RegularExpressions;
using System.Xml;
using System.Xml.Linq;

namespace LanguageModel.Data;

/// <summary>
/// The English documentation that comes with every .NET SDK, as plain text. A type is one document; a sentence that many members
/// share (overloads, interface implementations) is kept once, so that the model cannot score by copying.
/// </summary>
internal static partial class DotNetDocumentation
{
    private static readonly string[] s_packs = ["Microsoft.NETCore.App.Ref", "Microsoft.AspNetCore.App.Ref"];

    /// <summary>The documentation files of the newest reference packs; empty where no SDK is found.</summary>
    public static IReadOnlyList<string> FindFiles()
    {
        foreach (string root in DotNetRoots())
        {
            // The ASP.NET pack repeats files of the first one.
            var files = s_packs
                .SelectMany(pack => NewestReferenceFolder(Path.Combine(root, "packs", pack)))
                .SelectMany(folder => Directory.EnumerateFiles(folder, "*.xml"))
                .DistinctBy(Path.GetFileName)
                .OrderBy(Path.GetFileName, StringComparer.Ordinal)
                .ToList();
            if (files.Count > 0)
                return files;
        }

        return [];
    }

    /// <summary>One text per documented type, in an order that is stable and mixes the namespaces.</summary>
    public static IEnumerable<string> Read(IEnumerable<string> files)
    {
        var documents = new Dictionary<string, StringBuilder>(StringComparer.Ordinal);
        var seen = new HashSet<string>(StringComparer.Ordinal);
        foreach (string file in files)
        {
            foreach (XElement member in Members(file))
            {
                string name = (string?)member.Attribute("name") ?? "";
                var lines = Describe(member).Where(seen.Add).ToList();
                if (lines.Count == 0 || name.Length < 3)
                    continue;

                (string type, string title) = Split(name);
                if (!documents.TryGetValue(type, out StringBuilder? document))
                    documents[type] = document = new StringBuilder();
                document.Append(title).Append('\n');
                foreach (string line in lines)
                    document.Append(line).Append('\n');
                document.Append('\n');
            }
        }

        return documents
            .OrderBy(pair => Convert.ToHexString(SHA256.HashData(Encoding.UTF8.GetBytes(pair.Key))), StringComparer.Ordinal)
            .Select(pair => pair.Value.ToString());
    }

    private static IEnumerable<string> DotNetRoots()
    {
        string? configured = Environment.GetEnvironmentVariable("DOTNET_ROOT");
        if (!string.IsNullOrEmpty(configured))
            yield return configured;

        // <root>/shared/Microsoft.NETCore.App/<version>/
        yield return Path.GetFullPath(Path.Combine(RuntimeEnvironment.GetRuntimeDirectory(), "..", "..", ".."));

        string executable = OperatingSystem.IsWindows() ? "dotnet.exe" : "dotnet";
        foreach (string folder in (Environment.GetEnvironmentVariable("PATH") ?? "").Split(Path.PathSeparator))
        {
            var host = new FileInfo(Path.Combine(folder, executable));
            if (host.Exists)
                yield return Path.GetDirectoryName(host.ResolveLinkTarget(returnFinalTarget: true)?.FullName ?? host.FullName)!;
        }
    }

    private static IEnumerable<string> NewestReferenceFolder(string pack)
    {
        if (!Directory.Exists(pack))
            return [];
        return Directory.EnumerateDirectories(pack)
            .Where(folder => Directory.Exists(Path.Combine(folder, "ref")))
            .OrderByDescending(PackVersion)
            .Take(1)
            .SelectMany(folder => Directory.EnumerateDirectories(Path.Combine(folder, "ref")));
    }

    private static Version PackVersion(string folder) =>
        Version.TryParse(Path.GetFileName(folder).Split('-')[0], out Version? version) ? version : new Version();

    private static IEnumerable<XElement> Members(string file)
    {
        using var reader = XmlReader.Create(file, new XmlReaderSettings { IgnoreComments = true });
        reader.MoveToContent();
        while (!reader.EOF)
        {
            if (reader.NodeType == XmlNodeType.Element && reader.Name == "member")
                yield return (XElement)XNode.ReadFrom(reader);
            else
                reader.Read();
        }
    }

    private static IEnumerable<string> Describe(XElement member)
    {
        foreach (XElement part in member.Elements())
        {
            string text = Blank().Replace(PlainText(part), " ").Trim();
            if (text.Length == 0)
                continue;
            switch (part.Name.LocalName)
            {
                case "summary" or "remarks" or "value":
                    yield return text;
                    break;
                case "param" or "typeparam":
                    yield return $"{(string?)part.Attribute("name")}: {text}";
                    break;
                case "returns":
                    yield return $"Returns: {text}";
                    break;
                case "exception":
                    yield return $"{ShortName((string?)part.Attribute("cref"))}: {text}";
                    break;
            }
        }
    }

    private static string PlainText(XElement element) => string.Concat(element.Nodes().Select(node => node switch
    {
        XText text => text.Value,
        XElement { IsEmpty: true } reference => ShortName((string?)(reference.Attribute("cref") ?? reference.Attribute("langword")
            ?? reference.Attribute("name") ?? reference.Attribute("href"))),
        XElement { Name.LocalName: not ("code" or "example") } nested => PlainText(nested),
        _ => " ",
    }));

    /// <summary>"M:System.String.Join(System.String)" is of the type "System.String", its title "System.String.Join".</summary>
    private static (string type, string title) Split(string name)
    {
        string title = Arity().Replace(name[2..].Split('(')[0], "").Replace("#", "", StringComparison.Ordinal);
        int lastDot = title.LastIndexOf('.');
        return (name[0] == 'T' || lastDot < 0 ? title : title[..lastDot], title);
    }

    private static string ShortName(string? reference)
    {
        if (reference is null)
            return "";
        string name = Arity().Replace(reference.Split('(')[0], "");
        return name[(name.LastIndexOf('.') + 1)..];
    }

    [GeneratedRegex(@"\s+")]
    private static partial Regex Blank();

    /// <summary>The number of type parameters: the "`1" of "List`1".</summary>
    [GeneratedRegex(@"`+\d+")]
    private static partial Regex Arity();
}
