using FlaSharp.IO;
using FlaSharp.Models;
using FlaSharp.Tests.Models;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>The peers' models on the GPU.</summary>
public sealed class ModelsOnGpuTests
{
    public static TheoryData<string> Folders => GoldenModelTests.Folders;

    [GpuTheory, MemberData(nameof(Folders))]
    public void Logits_loss_and_gradients_are_the_peers(string folder)
    {
        using var scope = NewDisposeScope();
        var golden = SafeTensors.Load(Path.Combine(Golden.Folder(folder), "golden.safetensors"));
        using var model = CausalLM.FromPretrained(Golden.Folder(folder), CUDA);
        var ids = golden["input_ids"].cuda();
        Compare.Close(model.forward(ids).cpu(), golden["logits"], 1e-4, $"{folder} logits");

        var loss = model.Loss(ids, ids);
        Compare.Close(loss.reshape(1).cpu(), golden["loss"], 1e-5, $"{folder} loss");
        loss.Backward();
        foreach (var (name, parameter) in model.named_parameters())
            Compare.Close(parameter.grad!.cpu(), golden[$"grad.{name}"], 1e-3, $"{folder} gradient of {name}");
    }

    [GpuTheory, MemberData(nameof(Folders))]
    public void In_bfloat16_logits_loss_and_gradients_come_near_the_peers(string folder)
    {
        using var scope = NewDisposeScope();
        var golden = SafeTensors.Load(Path.Combine(Golden.Folder(folder), "golden.safetensors"));
        using var model = CausalLM.FromPretrained(Golden.Folder(folder), CUDA, ScalarType.BFloat16);
        var ids = golden["input_ids"].cuda();
        Compare.Close(model.forward(ids).cpu(), golden["logits"], 0.04, $"{folder} logits");

        var loss = model.Loss(ids, ids);
        Compare.Close(loss.reshape(1).cpu(), golden["loss"], 1e-3, $"{folder} loss");
        loss.Backward();
        // On the CPU logits are off by up to 0.020, and the gradient of a step bias, a sum that cancels, by up to 0.078.
        foreach (var (name, parameter) in model.named_parameters())
            Compare.Close(parameter.grad!.cpu(), golden[$"grad.{name}"], 0.15, $"{folder} gradient of {name}");
    }

    [GpuTheory, MemberData(nameof(Folders))]
    public void Greedy_tokens_are_those_of_the_CPU(string folder)
    {
        using var scope = NewDisposeScope();
        var prompt = SafeTensors.Load(Path.Combine(Golden.Folder(folder), "generated.safetensors"))["prompt"];
        using var model = CausalLM.FromPretrained(Golden.Folder(folder));
        var options = new GenerationOptions { MaxNewTokens = 16 };
        var expected = model.Generate(prompt, options).data<long>().ToArray();
        model.to(CUDA);
        Assert.Equal(expected, model.Generate(prompt.cuda(), options).cpu().data<long>().ToArray());
    }
}
